"""Which release answers whom: a model's live one, or one arm of an alias."""

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.releases import Release

# One query: a model is one arm with its live release, an alias has those of its table.
# The parameters are the slug, twice.
ARMS = """
    SELECT r.*, 1 AS weight, m.id AS arm_id, m.slug || ' v' || r.version AS arm
    FROM inference_release r JOIN inference_model m ON m.id = r.model_id
    WHERE m.slug = %s AND m.is_enabled AND r.state = 'live'
    UNION ALL
    SELECT r.*, arm.weight, arm.id, alias.slug || '/' || m.slug || ' v' || r.version
    FROM inference_alias alias
    JOIN inference_aliasarm arm ON arm.alias_id = alias.id
    JOIN inference_release r
        ON r.id = arm.release_id OR (r.model_id = arm.model_id AND r.state = 'live')
    JOIN inference_model m ON m.id = r.model_id
    WHERE alias.slug = %s AND alias.is_enabled AND m.is_enabled AND r.state <> 'retired'
"""


def choose(arms: "Sequence[Release]", user: Any) -> "Release | None":
    """The arm of this person, the same every time; without a person the heaviest arm.

    Weighted rendezvous hashing: a person's draw for an arm depends on nothing but the two, so
    a changed weight, a new arm or a lost one moves only the share of people it has to.
    """
    if len(arms) < 2 or user is None or user.pk is None:
        return max(arms, key=lambda arm: arm.weight, default=None)
    return max(arms, key=lambda arm: score(f"{arm.arm_id} {user.pk}", arm.weight))


def score(key: str, weight: int) -> float:
    """Greatest for an arm with a probability that is its share of the weights."""
    drawn = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) + 1
    return -weight / math.log(drawn / (2**64 + 2))
