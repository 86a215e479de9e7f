"""Print where Playwright installed Chromium; the tests look for a `chromium` on the path."""

from __future__ import annotations

from playwright.sync_api import sync_playwright

with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
