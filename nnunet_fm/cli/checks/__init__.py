"""What ``nnunet-fm doctor`` looks at: one file for each subject, each a generator of findings."""
