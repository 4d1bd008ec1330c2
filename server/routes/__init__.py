"""One file per endpoint; each has a `routes` table that `specdec.server.app` adds."""
