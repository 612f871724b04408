"""What is done with the figures of asv_bench beside asv's own: CI's comparison of commits, records, trend figures."""
