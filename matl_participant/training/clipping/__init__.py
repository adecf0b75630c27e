"""Exact per-sample gradient clipping, at about the price of one ordinary backward pass.

For every layer the cheaper of two ways to its per-sample gradient norms is taken (mixed ghost
clipping, Bu et al., arXiv 2205.10683), and the clipped sum is formed from what the one
backward pass left behind (book-keeping, Bu et al., arXiv 2210.00038). Nothing here samples,
draws noise, accounts or reads a file.
"""
