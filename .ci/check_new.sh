#!/usr/bin/env bash
# What `stab new` writes, in the environment that is active: installed, tested, checked and run as its own words say.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
stab new stabilizer gate_mean > mean.txt
stab new stabilizer gate_steps --kind intervention > steps.txt
stab new task gate_mass > mass.txt
pip install -q ./stab-gate-mean ./stab-gate-steps ./stab-gate-mass
for folder in stab-gate-mean stab-gate-steps stab-gate-mass; do pytest -q "$folder"; done
stab check gate_mean gate_steps gate_mass > check.txt || { cat check.txt; exit 1; }
tail -n 1 check.txt
stab compare --task gate_mass --stabilizers gate_mean,gate_steps --quick 2> talk.txt || { cat talk.txt; exit 1; }
