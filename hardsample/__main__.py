"""`python -m hardsample`, also for `accelerate launch -m hardsample train …`: the command line."""

from hardsample.cli.main import main

if __name__ == "__main__":
    main()
