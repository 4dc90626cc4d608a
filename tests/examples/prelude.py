"""What the blocks of the docs may use without defining it: two banks, a shop, letters. They do nothing."""

import asyncio
import random
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

__all__ = ["UTC", "Any", "asyncio", "dataclass", "datetime", "random", "timedelta", "uuid"]


@dataclass
class Order:
    id: str = "o-1"
    customer: str = "ann"
    amount: int = 5
    source: str = "alice"
    target: str = "bob"


@dataclass
class Transfer:
    source: str
    target: str
    amount: int


@dataclass
class Receipt:
    id: str
    approved_by: str


class Bank:
    def debit(self, holder: str, amount: int, key: str = "") -> dict[str, str]:
        return {"id": f"debit-{holder}-{amount}"}

    def credit(self, holder: str, amount: int, key: str = "") -> dict[str, str]:
        return {"id": f"credit-{holder}-{amount}"}


bank_a, bank_b = Bank(), Bank()


def charge(*args: Any) -> dict[str, str]:
    return {"id": "charge-1"}


def refund(*args: Any) -> None: ...


def ship(*args: Any) -> str:
    return "parcel-1"


def send_letter(*args: Any) -> None: ...


def load(*args: Any) -> list[int]:
    return [1, 2, 3]


def save(*args: Any) -> None: ...
