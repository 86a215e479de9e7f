"""``python -m rediffuse``, for launchers such as torchrun and accelerate."""

from rediffuse.cli import main

if __name__ == "__main__":
    main()
