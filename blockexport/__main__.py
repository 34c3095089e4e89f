"""`python -m blockexport`."""

from blockexport.cli.app import main

if __name__ == "__main__":
    main()
