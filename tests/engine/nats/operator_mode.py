"""A NATS operator, its accounts and a user, made here: what `nsc` makes where they are used.

Tokens are JSON that is signed with NKeys; a node that trusts the operator takes whoever shows a
user's token that an account signed, and can sign what the node asks it to.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from typing import Any

import nkeys  # type: ignore[import-untyped,unused-ignore]

_UNLIMITED = {"subs": -1, "data": -1, "payload": -1}
_ACCOUNT = _UNLIMITED | {"imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
_JETSTREAM = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}


#: What a key may be of.
KINDS = (
    ("operator", nkeys.PREFIX_BYTE_OPERATOR),
    ("account", nkeys.PREFIX_BYTE_ACCOUNT),
    ("user", nkeys.PREFIX_BYTE_USER),
)


class Key:
    """An NKey of an operator, an account or a user."""

    def __init__(self, prefix: int) -> None:
        self.seed: bytes = nkeys.encode_seed(secrets.token_bytes(32), prefix)
        self._pair = nkeys.from_seed(bytearray(self.seed))
        self.public: str = self._pair.public_key.decode()

    def token(self, subject: Key, name: str, claims: dict[str, Any]) -> str:
        """What this key says of another one, or of itself."""
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        body = {
            "jti": secrets.token_hex(8),
            "iat": int(time.time()),
            "iss": self.public,
            "sub": subject.public,
            "name": name,
            "nats": claims | {"version": 2},
        }
        text = f"{_coded(json.dumps(head).encode())}.{_coded(json.dumps(body).encode())}"
        return f"{text}.{_coded(self._pair.sign(text.encode()))}"


class Operator:
    """One operator with a system account and an account that may use JetStream."""

    def __init__(self) -> None:
        self._key, self._system = Key(nkeys.PREFIX_BYTE_OPERATOR), Key(nkeys.PREFIX_BYTE_ACCOUNT)
        self._account = Key(nkeys.PREFIX_BYTE_ACCOUNT)

    def config(self) -> str:
        """What makes a node trust it."""
        claims = {"type": "operator", "system_account": self._system.public}
        itself = self._key.token(self._key, "fleet", claims)
        accounts = [(self._system, "SYS", _ACCOUNT), (self._account, "APP", _ACCOUNT | _JETSTREAM)]
        known = [
            f"{key.public}: {self._key.token(key, name, {'type': 'account', 'limits': limits})}"
            for key, name, limits in accounts
        ]
        return (
            f"operator: {itself}\nsystem_account: {self._system.public}\n"
            f"resolver: MEMORY\nresolver_preload: {{\n{chr(10).join(known)}\n}}"
        )

    def creds(self) -> str:
        """A credentials file of a new user."""
        user = Key(nkeys.PREFIX_BYTE_USER)
        token = self._account.token(user, "server", {"type": "user"} | _UNLIMITED)
        return (
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            "-----BEGIN USER NKEY SEED-----\n"
            f"{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
