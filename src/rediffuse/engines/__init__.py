"""Rediffuse driven by cluster engines; each module needs the extra of its engine, and nothing else imports them."""
