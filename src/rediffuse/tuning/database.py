"""The database of a study that several workers share. Its password is in no file, no message and no log."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

from rediffuse.errors import ConfigError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

# Seconds that a worker waits while another one writes to an SQLite file; a write takes milliseconds.
SQLITE_TIMEOUT = 60
# How often a database is opened: of workers that start together on an empty one, one makes the tables.
ATTEMPTS = 8


@dataclass(frozen=True)
class Address:
    """The URL of a database; as text, it has neither user nor password.

    Attributes:
        url: what the caller gave.
        shown: driver, host and database.
        secrets: what errors of a driver must not repeat.
    """

    url: str = field(repr=False)
    shown: str
    secrets: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.shown

    def without_password(self, text: str) -> str:
        """``text`` of a driver, without the secrets of the URL."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return text


def parse_address(url: str) -> Address:
    """Read the URL of a database.

    Raises:
        ConfigError: it is not such a URL.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    # The text is not repeated in errors: it may hold a password.
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigError(
            "storage is not the URL of a database.",
            "For example: postgresql://user:password@host/database or sqlite:///study.db",
        ) from None
    if "@" in (parsed.host or ""):
        raise ConfigError(
            "storage has a user or password with characters that end it in a URL.",
            "Write them in percent: / is %2F, @ is %40, : is %3A.",
        )
    options = [value for value in parsed.query.values() if isinstance(value, str)]
    where = f"{parsed.host or ''}{f':{parsed.port}' if parsed.port else ''}"
    passwords = [each for each in (parsed.password, *options) if each]
    secrets = (url, parsed.render_as_string(hide_password=False), *passwords, *map(quote_plus, passwords))
    return Address(url, f"{parsed.drivername}://{where}/{parsed.database or ''}", secrets)


def open_database(address: Address) -> RDBStorage:
    """Open a database with Optuna, which makes its tables if there are none.

    Raises:
        ConfigError: the package that connects to it is not installed.
    """
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import IntegrityError, NoSuchModuleError, OperationalError, ProgrammingError

    # A connection that the server has closed while a trial was trained is replaced.
    options: dict[str, Any] = {"pool_pre_ping": True}
    sqlite = address.url.startswith("sqlite")
    if sqlite:
        options["connect_args"] = {"timeout": SQLITE_TIMEOUT}
    try:
        storage = None
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(OperationalError, ProgrammingError, IntegrityError):
                storage = RDBStorage(address.url, engine_kwargs=options)
                break
            time.sleep(random.uniform(0.1, 0.5))
        storage = storage or RDBStorage(address.url, engine_kwargs=options)
    except (ImportError, NoSuchModuleError) as error:
        reason = address.without_password(str(error.__cause__ or error))
        raise ConfigError(
            f"The database {address} cannot be opened: {reason}",
            "Install the package that connects to it, such as psycopg2-binary for postgresql://.",
        ) from None
    if sqlite:
        _lock_before_reading(storage)
    return storage


def _lock_before_reading(storage: RDBStorage) -> None:
    """Make every transaction on an SQLite file take the lock to write when it begins.

    Optuna reads the state of a trial and then claims it. Other databases lock the row that is read (``FOR UPDATE``);
    SQLite has no such lock, so two workers could claim one trial.
    """
    from sqlalchemy import event

    @event.listens_for(storage.engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver would begin transactions by itself, and without the lock

    @event.listens_for(storage.engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    storage.engine.dispose()  # of connections that were made before
