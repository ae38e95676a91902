"""What a compiled program does, counted in its text: kernels, traffic, products, collectives.

XLA's own analysis counts the body of a loop once; here it counts as often as it runs. The text is
that of ``compiled.as_text()``: computations of instructions, one a line, in which a loop names its
body, and a fusion, which is one kernel, what it fuses.
"""

import math
import re
from collections import Counter
from functools import cache
from typing import NamedTuple

# They launch nothing.
_FREE = frozenset(
    [
        "parameter",
        "constant",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "after-all",
        "iota",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "add-dependency",
    ]
)
_ENDS = ("-done", "-update-start", "async-update")
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
)
_SLICES = ("dynamic-slice", "slice", "gather")
_RENAMES = ("bitcast", "copy", "convert", "reshape")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LAYOUT = re.compile(r"\{[^}]*\}")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")


class Counts(NamedTuple):
    """What one run of a program does.

    Attributes:
      kernels: launches, by the kind of instruction.
      read_bytes: that kernels read from the device's main memory, each its own.
      written_bytes: likewise.
      dots: products of matrices and convolutions, by the precision of their operands.
      collectives: exchanges between devices, by kind.
      exchanged_bytes: what a device puts into them.
      unknown_loops: loops of unknown length, each of which counts as if it ran once.
    """

    kernels: Counter[str]
    read_bytes: int
    written_bytes: int
    dots: Counter[str]
    collectives: Counter[str]
    exchanged_bytes: int
    unknown_loops: int

    @property
    def launches(self) -> int:
        """Kernels of all kinds."""
        return self.kernels.total()

    def plus(self, other: "Counts") -> "Counts":
        """One after the other."""
        return Counts(
            self.kernels + other.kernels,
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
            self.dots + other.dots,
            self.collectives + other.collectives,
            self.exchanged_bytes + other.exchanged_bytes,
            self.unknown_loops + other.unknown_loops,
        )

    def times(self, trips: int) -> "Counts":
        """So many times."""
        return Counts(
            _times(trips, self.kernels),
            trips * self.read_bytes,
            trips * self.written_bytes,
            _times(trips, self.dots),
            _times(trips, self.collectives),
            trips * self.exchanged_bytes,
            self.unknown_loops,
        )


def _times(trips: int, counts: Counter[str]) -> Counter[str]:
    return Counter({kind: trips * number for kind, number in counts.items()})


NOTHING = Counts(Counter(), 0, 0, Counter(), Counter(), 0, 0)


class Instruction(NamedTuple):
    """A line: its type, what it does, the names of its operands, and what is said of it after."""

    name: str
    type: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool = False

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute such as ``body`` names."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


def count(text: str) -> Counts:
    """What the entry computation of the ``text`` of a compiled program does.

    Raises:
      ValueError: no such text.
    """
    return _Module(text).of_entry()


def bytes_of(type: str) -> int:
    """Bytes of an array, or of all arrays of a tuple, that lie in main memory, without padding.

    >>> bytes_of("(f32[2,3]{1,0}, pred[])")
    25

    The others lie in a memory of the chip, ``S(1)`` and above.

    >>> bytes_of("f32[2,3]{1,0:T(8,128)S(1)}")
    0
    """
    total = 0
    for dtype, shape, layout in _ARRAY.findall(type):
        if re.search(r"S\([1-9]", layout):
            continue
        total += math.ceil(_product(shape) * _bits(dtype) / 8)
    return total


def elements_of(type: str) -> int:
    """Of an array, wherever it lies, or of all arrays of a tuple."""
    shapes = (shape for _, shape, _ in _ARRAY.findall(type))
    return sum(map(_product, shapes))


def instruction(line: str) -> Instruction | None:
    """A line of a computation, taken apart; None if it is none."""
    name, equals, value = line.strip().partition(" = ")
    if not equals:
        return None
    is_root = name.startswith("ROOT ")
    type_end = _closing(value) if value.startswith("(") else value.find(" ")
    called = value[type_end:].strip()
    kind, _, _ = called.partition("(")
    arguments = called[len(kind) :]
    end = _closing(arguments)
    operands = re.findall(r"%([\w.\-]+)", arguments[:end])
    rest = arguments[end:]
    if kind in ("constant", "parameter"):  # its value, its place
        rest = arguments[1 : end - 1]
    return Instruction(
        name.removeprefix("ROOT ").removeprefix("%"),
        value[:type_end],
        kind,
        tuple(operands),
        rest,
        is_root,
    )


class _Module:
    """The computations of a program by name, each a dict of instructions by name."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] | None = None
        for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
            if head := _HEAD.match(line):
                current = self.computations.setdefault(head[2], {})
                if head[1]:
                    self.entry = head[2]
            elif line.startswith("}"):
                current = None
            elif current is not None and (found := instruction(line)):
                current[found.name] = found
        if not self.entry:
            raise ValueError("this is no text of a compiled program: it has no ENTRY")
        self.total = cache(self._total)
        self.products = cache(self._products)
        self.shares_read = cache(self._shares_read)

    def of_entry(self) -> Counts:
        return self.total(self.entry)

    def _total(self, name: str) -> Counts:
        """Of one run of a computation whose instructions are launched one by one."""
        found = NOTHING
        for each in self.computations[name].values():
            found = found.plus(self.of(each, name))
        return found

    def of(self, each: Instruction, where: str) -> Counts:
        """Of one instruction of the computation ``where``."""
        kind = each.kind.removesuffix("-start")
        if kind in _FREE or each.kind.endswith(_ENDS):
            return NOTHING
        if 'custom_call_target="AllocateBuffer"' in each.rest:
            return NOTHING
        if kind == "while":
            trips = self.trips(each, where)
            body = self.total(each.attribute("body") or "")
            if trips is None:
                return body._replace(unknown_loops=body.unknown_loops + 1)
            return body.times(trips)
        if kind == "call":
            return self.total(each.attribute("to_apply") or "")
        if kind == "async":
            return self.total(each.attribute("calls") or "")
        if kind == "conditional":
            branches = map(self.total, _branches(each))
            return max(branches, key=lambda branch: branch.launches)

        computation = self.computations[where]
        found = NOTHING._replace(
            kernels=Counter({kind: 1}),
            read_bytes=self.read(each, computation),
            written_bytes=self.written(each, computation),
            dots=self.dots_of(each),
        )
        if kind in _COLLECTIVES:
            # From memories of the chip too.
            types = (_LAYOUT.sub("", computation[n].type) for n in each.operands)
            sizes = map(bytes_of, types)
            found = found._replace(
                collectives=Counter({kind: 1}), exchanged_bytes=sum(sizes)
            )
        return found

    # Loops.

    def trips(self, loop: Instruction, where: str) -> int | None:
        """How often a loop runs, as the compiler says or else as its condition does."""
        said = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest)
        if said:
            return int(said[1])
        # TPU's compiler does not say. JAX counts its loops up in steps of one.
        condition = self.computations[loop.attribute("condition") or ""]
        root = next(each for each in condition.values() if each.is_root)
        if root.kind != "compare" or "direction=LT" not in root.rest:
            return None
        counter, end = (self.followed(condition, name) for name in root.operands)
        start = self.carried(counter, self.computations[where], loop)
        bound = end if end.kind == "constant" else None
        bound = bound or self.carried(end, self.computations[where], loop)
        if start is None or bound is None:
            return None
        return max(0, int(bound.rest) - int(start.rest))

    def carried(
        self, part: Instruction, computation: dict[str, Instruction], loop: Instruction
    ) -> Instruction | None:
        """The constant that a part of a loop's state begins as, if it is one."""
        beginning = self.followed(computation, loop.operands[0])
        if part.kind != "get-tuple-element" or beginning.kind != "tuple":
            return None
        index = re.search(r"index=(\d+)", part.rest)
        assert index, part
        start = self.followed(computation, beginning.operands[int(index[1])])
        return start if start.kind == "constant" else None

    def followed(self, computation: dict[str, Instruction], name: str) -> Instruction:
        """What an instruction stands for, past mere copies."""
        each = computation[name]
        while each.kind in _RENAMES:
            each = computation[each.operands[0]]
        return each

    # Traffic.

    def read(self, each: Instruction, computation: dict[str, Instruction]) -> int:
        """Bytes of all operands, of which slices read a part."""
        total = 0.0
        for place, name in enumerate(each.operands):
            operand = computation[name]
            total += bytes_of(operand.type) * self.share_read(each, place, operand, 1.0)
        return round(total)

    def share_read(
        self, user: Instruction, place: int, operand: Instruction, share: float
    ) -> float:
        """How much of an operand is read to make that ``share`` of what ``user`` makes."""
        if share == 0:
            return 0.0
        if user.kind == "fusion":
            return self.shares_read(user.attribute("calls") or "")[place]
        if user.kind == "dynamic-update-slice" and place == 0:
            return 0.0  # in place
        have, want = elements_of(operand.type), elements_of(user.type)
        if user.kind in _SLICES and place == 0:
            return share * want / have
        return share if have == want else 1.0

    def _shares_read(self, computation: str) -> dict[int, float]:
        """How much a fusion reads of each of its parameters, if no two slices overlap."""
        fused = self.computations[computation]
        shares = dict.fromkeys(fused, 0.0)
        found = {}
        for each in reversed(fused.values()):  # those who read come after
            share = 1.0 if each.is_root else min(1.0, shares[each.name])
            if each.kind == "parameter":
                found[int(each.rest)] = share
            read = dict.fromkeys(each.operands, 0.0)  # an operand may come twice
            for place, name in enumerate(each.operands):
                part = self.share_read(each, place, fused[name], share)
                read[name] = max(read[name], part)
            for name, part in read.items():
                shares[name] += part
        return found

    def written(self, each: Instruction, computation: dict[str, Instruction]) -> int:
        """Bytes of the result, of which an update in place writes a part."""
        if each.kind.endswith("-start"):
            parts = _parts(each.type)
            if each.kind == "copy-start":
                return bytes_of(parts[0])
            is_pair = len(parts) > 1 and not each.kind.startswith("all-reduce")
            return bytes_of(parts[1] if is_pair else each.type)
        if "custom_call_target" in each.rest and "gemm" in each.rest:
            return bytes_of(_parts(each.type)[0])  # beside it, room to work in

        whole = bytes_of(each.type)
        if each.kind == "dynamic-update-slice":
            return min(whole, bytes_of(computation[each.operands[1]].type))
        if each.kind == "fusion":
            fused = self.computations[each.attribute("calls") or ""]
            root = next(inner for inner in fused.values() if inner.is_root)
            return min(whole, self.written_by_root(root, fused))
        return whole

    def written_by_root(self, root: Instruction, fused: dict[str, Instruction]) -> int:
        if root.kind == "tuple":
            parts = (fused[name] for name in root.operands)
            return sum(self.written_by_root(part, fused) for part in parts)
        if root.kind == "bitcast":
            return self.written_by_root(fused[root.operands[0]], fused)
        return self.written(root, fused)

    # Products.

    def dots_of(self, each: Instruction) -> Counter[str]:
        if each.kind == "fusion":
            return self.products(each.attribute("calls") or "")
        is_gemm = each.kind == "custom-call" and "gemm" in each.rest
        if is_gemm or each.kind in ("dot", "convolution"):
            return Counter({_precision(each): 1})
        return Counter()

    def _products(self, name: str) -> Counter[str]:
        found = Counter()
        for each in self.computations[name].values():
            found += self.dots_of(each)
        return found


def _product(shape: str) -> int:
    return math.prod(int(n) for n in shape.split(",") if n)


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    found = re.match(r"[a-z]+(\d+)", dtype)  # f8e4m3fn has 8; a token has none
    return int(found[1]) if found else 0


def _closing(text: str) -> int:
    """The place after the parenthesis that closes the first."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _parts(type: str) -> list[str]:
    """The types in a tuple, which may be tuples; a type that is none, by itself."""
    if not type.startswith("("):
        return [type]
    parts = [""]
    depth = 0
    for letter in type[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _branches(each: Instruction) -> list[str]:
    found = re.search(r"branch_computations=\{([^}]*)\}", each.rest)
    if found:
        return re.findall(r"%?([\w.\-]+)", found[1])
    both = (each.attribute("true_computation"), each.attribute("false_computation"))
    return [name for name in both if name]


def _precision(dot: Instruction) -> str:
    """Of a product's operands; the device chooses what ``default`` is."""
    algorithm = re.search(r"\balgorithm=(\w+)", dot.rest)
    if algorithm:
        return algorithm[1]
    said = re.search(r'operand_precision(?:=\{|":\[)([^}\]]*)', dot.rest)
    both = set(re.findall(r"\w+", said[1].lower())) if said else set()
    for precision in ("highest", "high"):
        if precision in both:
            return precision
    return "default"
