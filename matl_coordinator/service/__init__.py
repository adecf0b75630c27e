"""The coordinator's use cases.

``register`` owns the state and the one lock; ``intake`` serves hospitals, ``operations``
serves operators, and ``conductor`` drives rounds from phase to phase. All three decide
by pure functions of the state and let the register make the decision durable.
"""
