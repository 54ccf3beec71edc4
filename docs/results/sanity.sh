#!/usr/bin/env bash
# The study of docs/results/cifar100-methods.md: every method, two pairs, three seeds. Run it from the
# root of the tree; what is finished is left alone, so it may be interrupted.
#
#   docs/results/sanity.sh [METHOD...]
set -euo pipefail
export OMP_NUM_THREADS=1
methods=("${@:-}")
if [ -z "${methods[0]}" ]; then
  mapfile -t methods < <(anykd methods | awk '{ print $1 }')
fi
for seed in 0 1 2; do
  for method in "${methods[@]}"; do
    for student in vit resnet; do
      out="runs/sanity/${student}_${method}_seed${seed}"
      test -e "$out/summary.json" && continue
      rm -rf "$out"
      echo "recipes/cifar100/sanity_${student}.toml --method $method --seed $seed --out $out"
    done
  done
done | xargs --max-procs=2 --max-lines=1 anykd distill
