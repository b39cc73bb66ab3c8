"""Entry point for `ray job submit --working-dir . -- python jobs/train.py jobs/NAME.yaml`; same arguments as
`raytrain-nlp train`.
"""

import sys

from raytrain_nlp.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
