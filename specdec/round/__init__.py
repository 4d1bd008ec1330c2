"""One round: rows through the target, tokens drawn, drafts accepted and committed."""
