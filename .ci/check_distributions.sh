#!/usr/bin/env bash
# Wheel, sdist and editable install of the checkout, each in an environment of its own that sees the given one's other packages.
# usage: .ci/check_distributions.sh PYTHON      (of an environment with the dev extra installed)
set -euo pipefail
python=$(command -v "$1")
top=$(cd "$(dirname "$0")/.." && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

mkdir "$tmp/checkout" "$tmp/out" "$tmp/base"
(cd "$top" && git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$tmp/checkout")
for package in "$site"/*; do  # everything but stab itself
    case $(basename "$package") in stab|stab_gva*|__editable__*|__pycache__) ;; *) ln -s "$package" "$tmp/base/" ;; esac
done
"$python" -m build --no-isolation --outdir "$tmp/out" "$tmp/checkout" > "$tmp/build.log" 2>&1 || { tail -n 20 "$tmp/build.log"; exit 1; }
if "$python" -m zipfile -l "$tmp"/out/*.whl | grep -E '(tests|benchmarks|plugins|examples)/'; then
    echo "the wheel carries what it should not"; exit 1
fi

check() { # name, where stab must come from, pip arguments...
    local environment="$tmp/$1" name=$1 origin=$2; shift 2
    "$python" -m venv --without-pip "$environment"
    echo "$tmp/base" > "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
    "$python" -m pip --python "$environment/bin/python" install -q --no-deps --no-build-isolation "$@"
    (cd / && "$environment/bin/stab" list > /dev/null && "$environment/bin/python" - "$origin" <<'PY'
import sys
from importlib import metadata, resources
import stab
from stab.tasks import tasks
assert stab.__file__.startswith(sys.argv[1]), f"imported {stab.__file__}, expected it under {sys.argv[1]}"
assert "hopper" in tasks.names()
assert metadata.version("stab-gva") == stab.__version__
for name in ("py.typed", "tasks/control/experts/humanoid.safetensors", "tasks/control/experts/ant.json",
             "cli/templates/task.py.txt"):
    assert resources.files("stab").joinpath(name).is_file(), name
assert "torch" not in sys.modules and "mujoco" not in sys.modules
PY
    ) && echo "$name ok"
}
check wheel "$tmp/wheel" "$tmp"/out/*.whl
check sdist "$tmp/sdist" "$tmp"/out/*.tar.gz
check editable "$tmp/checkout" -e "$tmp/checkout"
