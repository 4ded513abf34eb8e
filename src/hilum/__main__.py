"""`python -m hilum`, which is what `torchrun -m hilum` calls on every rank."""

from hilum.cli import main

if __name__ == "__main__":
    main()
