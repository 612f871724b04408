"""rANS: a range coder that comes within a fraction of a percent of the order-0 entropy, at any rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from rdo.coders.base import CODERS, Bitstream, EntropyCoder, Histogram, Symbols, check_count
from rdo.coders.fixed_length import FixedLength
from rdo.coders.varint import Reader, Writer
from rdo.errors import CoderError

_LANES = 8
_FEW = 4096
"""Sequences shorter than this use one lane: eight states would cost more than they save in time."""
_PRECISIONS = (12, 13, 14, 15, 16)
_MIN_PRECISION = 8
_SHARES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Candidate thresholds for escaping: symbols whose fair share of the table is below this many slots."""


@dataclass(frozen=True)
class _Model:
    """Which distinct symbols are in the table and their frequencies; the last entry is the escape, if any."""

    precision: int
    kept: NDArray[np.bool_]
    frequencies: NDArray[np.int64]
    bits: float
    """Estimate of the whole stream's bits, table included."""

    @property
    def escapes(self) -> bool:
        return not bool(self.kept.all())


@CODERS.register("rans")
@dataclass(frozen=True)
class RANS(EntropyCoder):
    """rANS: static order-0 range coding with eight interleaved states and frequencies of 12 to 16 bits.

    Symbols too rare for a slot of the table follow in a fixed-length code of their own, after an escape. The precision
    and the escapes are those of least total size.
    """

    name: ClassVar[str] = "rans"

    def encode(self, symbols: Symbols) -> Bitstream:
        from rdo_kernels.cpu import rans

        histogram = Histogram.of(symbols)
        if len(histogram.values) < 2:
            return Bitstream(_single(histogram), np.empty(0, np.uint8))
        model = _best_model(histogram)
        indices = histogram.indices_of(symbols)
        escaped = Bitstream(np.empty(0, np.uint8), np.empty(0, np.uint8))
        if model.escapes:
            places = np.cumsum(model.kept, dtype=np.uint32) - np.uint32(1)
            places[~model.kept] = np.uint32(model.kept.sum())
            escaped = FixedLength().encode(np.ascontiguousarray(symbols[~model.kept[indices]]))
            indices = places[indices]
        frequencies = model.frequencies
        starts = np.cumsum(frequencies) - frequencies
        states = np.empty(_lanes(symbols.size), np.uint32)
        words = np.empty(symbols.size, np.uint16)
        first = rans.encode(
            indices,
            frequencies.astype(np.uint32),
            starts.astype(np.uint32),
            1.0 / frequencies,
            model.precision,
            states,
            words,
        )
        payload = np.concatenate(
            [states.astype("<u4").view(np.uint8), words[first:].astype("<u2").view(np.uint8), escaped.payload]
        )
        return Bitstream(_table(histogram, model, escaped), payload)

    def decode(self, stream: Bitstream, count: int) -> Symbols:
        check_count(count)
        if count == 0 and stream.nbytes == 0:
            return np.empty(0, np.int32)
        reader = Reader(stream.table)
        precision = reader.number()
        if precision == 0:
            return _decode_single(reader, stream, count)
        if not _MIN_PRECISION <= precision <= 16:
            raise CoderError(f"the table has {precision} bits of precision; 8 to 16 are possible")
        escapes = reader.number()
        values = reader.ascending(1 << 16)
        frequencies = reader.numbers(len(values) + (escapes > 0))
        if (
            escapes > count
            or len(frequencies) < 2
            or int(frequencies.min()) < 1
            or int(frequencies.sum()) != 1 << precision
        ):
            raise CoderError("the frequencies of the table do not fill it")
        escaped, payload = _decode_escaped(reader, stream.payload, escapes)
        # The escape stands for a value that no symbol can have.
        entries = np.append(values, np.int64(np.iinfo(np.int32).min)) if escapes else values
        symbols = _decode_payload(payload, entries, frequencies, precision, count)
        if escapes:
            holes = np.flatnonzero(symbols == np.iinfo(np.int32).min)
            if len(holes) != escapes:
                raise CoderError(f"the table announces {escapes} escaped symbols, the payload has {len(holes)}")
            symbols[holes] = escaped
        return symbols

    def size_bytes(self, histogram: Histogram) -> int:
        """Within 16 bytes and 0.01 %: the last bits depend on the order of the symbols."""
        if len(histogram.values) < 2:
            return int(_single(histogram).size)
        model = _best_model(histogram)
        counts, outside = histogram.counts[model.kept], ~model.kept
        if model.escapes:
            counts = np.append(counts, histogram.counts[outside].sum())
        escaped = FixedLength().size_bytes(Histogram(histogram.values[outside], histogram.counts[outside]))
        bits = float((counts * (model.precision - np.log2(model.frequencies))).sum())
        nothing = Bitstream(np.empty(0, np.uint8), np.empty(0, np.uint8))
        table = int(_table(histogram, model, nothing).size)
        return table + escaped + 4 * _lanes(histogram.count) + 2 * -(-int(bits) // 16)


def _lanes(count: int) -> int:
    return 1 if count < _FEW else _LANES


def _single(histogram: Histogram) -> NDArray[np.uint8]:
    table = Writer()
    table.number(0)
    for value in histogram.values:
        table.signed(int(value))
    return table.bytes() if len(histogram.values) else np.empty(0, np.uint8)


def _decode_single(reader: Reader, stream: Bitstream, count: int) -> Symbols:
    value = reader.signed()
    reader.end()
    if stream.payload.size or abs(value) > 2**30:
        raise CoderError("the table of a single repeated symbol must stand alone and within +-2^30")
    return np.full(count, value, np.int32)


def _table(histogram: Histogram, model: _Model, escaped: Bitstream) -> NDArray[np.uint8]:
    table = Writer()
    table.number(model.precision)
    table.number(int(histogram.counts[~model.kept].sum()))
    table.ascending(histogram.values[model.kept])
    table.numbers(model.frequencies)
    return np.concatenate([table.bytes(), escaped.table])


def _best_model(histogram: Histogram) -> _Model:
    """The table of least total size."""
    best: _Model | None = None
    total = histogram.count
    for precision in (_MIN_PRECISION, *_PRECISIONS):
        if precision == _MIN_PRECISION and total > 1 << 14:
            continue
        slots = 1 << precision
        previous = -1
        for share in _SHARES:
            kept = histogram.counts >= share * total / slots
            if (share == 0.0 and len(kept) > slots) or int(kept.sum()) == previous or not kept.any():
                continue
            previous = int(kept.sum())
            if previous + (previous < len(kept)) > slots // 2 + 2 or previous + (previous < len(kept)) < 2:
                continue
            model = _model(histogram, kept, precision)
            if best is None or model.bits < best.bits - 1e-9:
                best = model
    if best is None:
        # More distinct symbols than any table holds, none of them frequent: keep the most frequent ones.
        kept = np.zeros(len(histogram.counts), np.bool_)
        kept[np.argsort(-histogram.counts, kind="stable")[: 1 << 14]] = True
        best = _model(histogram, kept, 16)
    return best


def _model(histogram: Histogram, kept: NDArray[np.bool_], precision: int) -> _Model:
    counts = histogram.counts[kept]
    outside = histogram.values[~kept]
    escapes = histogram.count - int(counts.sum())
    if escapes:
        counts = np.append(counts, escapes)
    frequencies = _normalise(counts, precision)
    bits = float((counts * (precision - np.log2(frequencies))).sum()) + 32 * _lanes(histogram.count)
    if escapes:
        bits += 8 * FixedLength().size_bytes(Histogram(outside, histogram.counts[~kept]))
    # Numbers of the table take seven bits a byte; runs of values are few.
    bits += 8 * (8 + float(np.ceil(np.maximum(1, np.frexp(frequencies)[1]) / 7).sum()))
    gaps = int((np.diff(histogram.values[kept]) > 1).sum())
    return _Model(precision, kept, frequencies, bits + 16 * gaps)


def _normalise(counts: NDArray[np.int64], precision: int) -> NDArray[np.int64]:
    """Frequencies >= 1 that sum to 2**precision, near the proportions of ``counts``; integer arithmetic throughout."""
    slots, total = 1 << precision, int(counts.sum())
    # count * slots may pass 2**63 only beyond 2**47 symbols.
    frequencies = np.maximum(1, (counts * slots + total // 2) // total)
    excess = int(frequencies.sum()) - slots
    while excess != 0:
        error = frequencies * total - counts * slots
        if excess > 0:
            # Take from entries that can give, those with the largest surplus for their size first.
            order = np.lexsort((-error, frequencies <= 1))[: min(excess, int((frequencies > 1).sum()))]
            spare = np.maximum(1, frequencies[order] * excess // max(int(frequencies[order].sum()), 1))
            spare = np.minimum(spare, frequencies[order] - 1)
            within = np.cumsum(spare) <= excess
            within[0] = True
            frequencies[order[within]] -= np.minimum(spare[within], excess)
        else:
            order = np.argsort(error, kind="stable")[: min(-excess, len(counts))]
            frequencies[order] += 1
        excess = int(frequencies.sum()) - slots
    return frequencies


def _decode_escaped(reader: Reader, payload: NDArray[np.uint8], escapes: int) -> tuple[Symbols, NDArray[np.uint8]]:
    """Split the escaped symbols, which end the payload, from the rest of it."""
    if not escapes:
        reader.end()
        return np.empty(0, np.int32), payload
    table = reader.rest()
    header = Reader(table)
    header.signed()
    length = -(-escapes * min(header.number(), 64) // 8)
    if length > payload.size:
        raise CoderError("the payload is too short for its escaped symbols")
    cut = payload.size - length
    return FixedLength().decode(Bitstream(table, payload[cut:]), escapes), payload[:cut]


def _decode_payload(
    payload: NDArray[np.uint8], values: NDArray[np.int64], frequencies: NDArray[np.int64], precision: int, count: int
) -> Symbols:
    from rdo_kernels.cpu import rans

    lanes = _lanes(count)
    if payload.size < 4 * lanes or payload.size % 2:
        raise CoderError(f"a payload of {payload.size} bytes cannot hold {lanes} states and whole words")
    states = payload[: 4 * lanes].copy().view("<u4").astype(np.uint32)
    words = payload[4 * lanes :].copy().view("<u2").astype(np.uint16)
    starts = np.cumsum(frequencies) - frequencies
    offsets = np.arange(1 << precision) - np.repeat(starts, frequencies)
    slot_values = np.repeat(values.astype(np.int32), frequencies)
    slot_steps = ((np.repeat(frequencies, frequencies) - 1) << 16 | offsets).astype(np.uint32)
    symbols = np.empty(count, np.int32)
    used = rans.decode(words, states, slot_values, slot_steps, precision, symbols)
    if used != words.size or (states != rans.LOW).any():
        raise CoderError("the payload is truncated or damaged")
    return symbols
