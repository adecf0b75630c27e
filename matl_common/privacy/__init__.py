"""Differential privacy as data: mechanisms, exact composition, secure noise.

Pure standard library, numpy and ``cryptography``; torch never enters. Nothing here
reads data of a patient or keeps state: the durable record is the participant's ledger.
"""
