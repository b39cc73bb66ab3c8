"""Entry point for `ray job submit --working-dir . -- python jobs/sweep.py jobs/sweep.yaml`; same arguments as
`raytrain-nlp sweep`.
"""

import sys

from raytrain_nlp.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["sweep"]
    main()
