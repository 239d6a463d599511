"""`python -m owl_swin`, the same as `owl-swin`; for torchrun, which starts modules."""

from owl_swin.cli.main import main

if __name__ == "__main__":
    main()
