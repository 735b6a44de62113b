"""Weight formats: made from a file at hand, measured on this machine, one proposed."""
