#!/usr/bin/env bash
# Wheel, sdist and editable install of the checkout, each in an environment of its own that sees the given one's packages.
# usage: .ci/check_distributions.sh PYTHON      (of an environment with the dev extra installed)
set -euo pipefail
python=$(command -v "$1")
top=$(cd "$(dirname "$0")/.." && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

git -C "$top" ls-files -z | (cd "$top" && xargs -0 cp --parents -t "$tmp" 2>/dev/null) || true
mkdir "$tmp/out"
"$python" -m build --no-isolation --outdir "$tmp/out" "$tmp" > "$tmp/build.log" 2>&1 || { tail -n 20 "$tmp/build.log"; exit 1; }

check() { # name, pip arguments...
    local name=$1 environment="$tmp/$1"; shift
    "$python" -m venv --without-pip "$environment"
    echo "$site" > "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
    "$python" -m pip --python "$environment/bin/python" install -q --no-deps --no-build-isolation --force-reinstall "$@"
    (cd / && "$environment/bin/stab" list > "$environment/list.txt" && "$environment/bin/python" - "$environment" <<'PY'
import sys
from importlib import metadata, resources
import stab
from stab.tasks import tasks
origin = stab.__file__
assert "hopper" in tasks.names()
assert metadata.version("stab-gva") == stab.__version__
for folder, name in (("stab", "py.typed"), ("stab.tasks.experts", "hopper.safetensors"), ("stab.reports", "leaderboard.schema.json")):
    assert (resources.files(folder) / name).is_file(), (folder, name)
assert "torch" not in sys.modules and "mujoco" not in sys.modules
print(f"ok: {origin.replace(sys.argv[1], '<environment>')}")
PY
    ) | sed "s|^|$name |"
}
check wheel "$tmp"/out/*.whl
check sdist "$tmp"/out/*.tar.gz
check editable -e "$tmp"
unzip -l "$tmp"/out/*.whl 2>/dev/null | grep -E 'tests/|benchmarks/|plugins/' && { echo "the wheel carries what it should not"; exit 1; } || true
