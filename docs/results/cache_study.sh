#!/usr/bin/env bash
# The study of docs/results/cache-study.md: three students of one teacher, each with labels alone, with
# the live teacher and from one cache, one after another. Run it from the root of the tree; what is
# finished is left alone, so it may be interrupted.
#
#   docs/results/cache_study.sh [SEED...]
set -euo pipefail
anykd cache build recipes/cifar100/cache_vit.toml 2>&1 | tee -a runs/cache-study.log
for seed in "${@:-0}"; do
  for student in vit resnet swin; do
    for arm in control live cache; do
      out="runs/cache-study/${student}_${arm}_seed${seed}"
      test -e "$out/summary.json" && continue
      rm -rf "$out"
      case $arm in
        control) flags=(--method control) ;;
        live) flags=(--set 'teacher={name = "runs/cifar100-small/teacher"}') ;;
        cache) flags=() ;;
      esac
      anykd distill "recipes/cifar100/cache_$student.toml" --seed "$seed" "${flags[@]}" --out "$out"
    done
  done
done
