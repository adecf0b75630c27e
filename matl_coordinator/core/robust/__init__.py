"""Aggregation that hostile updates cannot steer: rules over a round's geometry."""
