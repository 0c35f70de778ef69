"""`python -m hybridgen`, and for several processes `accelerate launch -m hybridgen`."""

from hybridgen.cli import main

if __name__ == "__main__":
    main()
