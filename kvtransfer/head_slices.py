"""KV whose heads lie with several holders, a slice each, as one reader's blocks.

    split_heads(layout, groups)          what holders keep that share the heads of ``layout``
    head_shares(own, holders)            which holder gives which of the reader's heads

The groups of holders may be finer, coarser or shifted against those of readers: each share is what
the reader says in its Open (docs/protocol.md section 5), and ``place_converted`` takes just those
heads out of that holder's frames, whatever its block size and dtype.

Used by no worker today: none has a part of the heads, and ``Importer.redeem`` reads from one
holder. What is here is held by tests alone, sessions of several holders into one lease among them.
On a device each holder's read must end before the next begins: blocks are copied out, filled up and
copied in whole there, and two at once would undo each other. Not covered: which of several holders
of the same head is asked (replicated heads), tickets and a commit over several workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pdserve.errors import LayoutMismatch
from pdserve.types import KVLayout


@dataclass(frozen=True, slots=True)
class HeadShare:
    """``layout``: the reader's own, with just the heads that this holder gives."""

    holder: int  # position in the list of holders
    layout: KVLayout


def split_heads(layout: KVLayout, groups: Sequence[range]) -> tuple[KVLayout, ...]:
    """One layout for each group of heads (numbers as the model counts them)."""
    own = _heads(layout)
    for group in groups:
        if not group or group.step != 1 or group.start < own.start or group.stop > own.stop:
            raise ValueError(f"heads {group} are no slice of {own}")
    return tuple(
        replace(layout, first_kv_head=group.start, num_kv_heads=len(group)) for group in groups
    )


def head_shares(own: KVLayout, holders: Sequence[KVLayout]) -> tuple[HeadShare, ...]:
    """Where each of the reader's heads comes from, in order of heads; once for each of them.

    Holders that have none of them get no share.

    Raises:
        LayoutMismatch: a head that no holder has (a gap), one that two have (an overlap), or a
            field that cannot be converted; it names the field, before anything is opened.
    """
    wanted = _heads(own)
    shares: list[HeadShare] = []
    for index, holder in enumerate(holders):
        start = max(wanted.start, holder.first_kv_head)
        stop = min(wanted.stop, _heads(holder).stop)
        if start < stop:
            share = replace(own, first_kv_head=start, num_kv_heads=stop - start)
            _check_fields(index, holder, share)
            shares.append(HeadShare(index, share))
    shares.sort(key=lambda share: share.layout.first_kv_head)
    _check_heads(wanted, shares)
    return tuple(shares)


def _check_fields(index: int, holder: KVLayout, share: KVLayout) -> None:
    name = holder.first_obstacle(share)
    if name is not None:
        theirs, ours = getattr(holder, name), getattr(share, name)
        raise LayoutMismatch(f"{name}: holder {index} has {theirs}, reader {ours}")


def _check_heads(wanted: range, shares: Sequence[HeadShare]) -> None:
    position, last = wanted.start, -1
    for share in shares:
        heads = _heads(share.layout)
        if heads.start > position:
            raise LayoutMismatch(f"heads: {_words(position, heads.start)} with no holder")
        if heads.start < position:
            both = _words(heads.start, min(position, heads.stop))
            raise LayoutMismatch(f"heads: {both} with holders {last} and {share.holder}")
        position, last = heads.stop, share.holder
    if position < wanted.stop:
        raise LayoutMismatch(f"heads: {_words(position, wanted.stop)} with no holder")


def _heads(layout: KVLayout) -> range:
    return range(layout.first_kv_head, layout.first_kv_head + layout.num_kv_heads)


def _words(start: int, stop: int) -> str:
    return f"{start}" if stop == start + 1 else f"{start} to {stop - 1}"
