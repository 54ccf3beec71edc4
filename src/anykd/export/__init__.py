"""Files that a trained student is deployed as, each run and compared before it is kept."""
