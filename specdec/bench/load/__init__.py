"""`specdec bench load`: what an engine or a server does under steady traffic.

Requests come in a closed loop (so many in flight, each that ends is replaced at once) or in an open one (Poisson arrivals).
Only the steady state counts. The first answers of a closed loop are cut to rising lengths, so that answers end one after
another and not in step; measuring begins when the warm-up's requests have ended, and ends while as many are in flight as ever.
"""
