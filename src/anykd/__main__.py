"""``python -m anykd``, for torchrun: ``torchrun --nproc-per-node 2 -m anykd distill ...``."""

from anykd.cli import main

if __name__ == "__main__":
    main()
