"""The operations of the Kronecker algebra, each defined once in plain torch."""
