"""How far a step and the training loop are from the least that distillation can take.

    python -m benchmarks.speed             # what has not been measured on this device yet
    python -m benchmarks.speed --again     # all of it anew
    python -m benchmarks.speed --pairs swin-t_resnet18 --methods kd ofa --precision bf16 --compile
    python -m benchmarks.speed --page      # the page and the README's table anew, from the results

The least is the sum of three parts, each timed alone: the bare teacher's forward pass, the bare
student's step, and the method's own modules. The parts, the step, the loop with its data, and a
step as published code runs it are timed in one process, in turn, in an order that moves on by one
each round; what is compared is compared within a round. One device has one file of results,
benchmarks/results/speed-DEVICE.json, which is written after each method of each pair.
"""
