"""Making tasks run: the façade and its services, workers, leases, the journal and the duties.

It knows the seam in `outrider.core`, never a concrete store.
"""
