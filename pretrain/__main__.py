"""`python -m pretrain`: see `pretrain.run`."""

from pretrain.run import main

if __name__ == "__main__":
    main()
