"""Evidence that a machine runs a measured program which its host cannot read into.

``snp`` judges AMD SEV-SNP reports, ``tdx`` Intel TDX quotes, ``simulated`` makes and judges
reports that prove nothing, for development; ``verifier`` chooses between them. ``binding`` says
what a report must be about. All of them are functions of their arguments, the time included.
"""
