#!/usr/bin/env bash
# msgspec 0.22.0: sorting structs fails when two equal ones hold None, though their other comparisons answer.
#
# Expected: Struct(order=True) compares field by field as tuples and dataclass(order=True) do: a pair of equal fields
#   is passed over, and two equal instances answer False to <. None in an optional field is then harmless as long as
#   an earlier field decides or both hold None.
# What happens: a difference in an earlier field decides, and <= of two equal instances is True; but < of the same two
#   asks None < None for the last pair and raises TypeError. So sorted() works until an equal pair meets in the list.
#
# Output seen:
#   msgspec 0.22.0
#   tuple      equal pair: <= True , < False
#   dataclass  equal pair: <= True , < False
#   Struct     equal pair: <= True , < TypeError: '<' not supported between instances of 'NoneType' and 'NoneType'
#   Struct     sorted without an equal pair: [24, 8]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet msgspec==0.22.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import dataclasses
import msgspec

class Struct(msgspec.Struct, order=True):
    layers: int
    dims: int
    tokens: int | None = None

@dataclasses.dataclass(order=True)
class Data:
    layers: int
    dims: int
    tokens: int | None = None

def less(left, right):
    try:
        return left < right
    except TypeError as error:
        return f"TypeError: {error}"

print("msgspec", msgspec.__version__)
pairs = {"tuple": [(1, 8, None)] * 2, "dataclass": [Data(1, 8), Data(1, 8)], "Struct": [Struct(1, 8), Struct(1, 8)]}
seen = {}
for name, (left, right) in pairs.items():
    assert left == right and (left <= right) is True, "behaviour changed"
    seen[name] = less(left, right)
    print(f"{name:<10} equal pair: <= {left <= right} , < {seen[name]}")
assert seen["tuple"] is False and seen["dataclass"] is False, "behaviour changed"
assert str(seen["Struct"]).startswith("TypeError"), "behaviour changed"
rest = [point.dims for point in sorted([Struct(2, 8), Struct(1, 24)])]
print(f"{'Struct':<10} sorted without an equal pair: {rest}")
assert rest == [24, 8], "behaviour changed"
PY
