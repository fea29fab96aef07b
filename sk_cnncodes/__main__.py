"""`python -m sk_cnncodes` is the command `sk-cnncodes`."""

from sk_cnncodes.cli import main

if __name__ == "__main__":
    main()
