"""Golden record: what plans, trainings, predictions, studies and tables are, to prove that a change changes nothing.

    python -m tests.golden write FOLDER            before a change
    python -m tests.golden compare FOLDER          after it: prints every difference, exit code 1 if there is one

The code is entered where users enter it: by commands, names of trainers and nnU-Net's own functions.
"""
