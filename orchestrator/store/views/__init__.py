"""What pages, the JSON API and metrics look at: reads of bounded cost that no verb and no turn depends on.

Owns: these queries. Does not own: what is shown of the answers (``monitoring``).
"""
