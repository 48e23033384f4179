"""Checks that packages outside polytask can run on their own balancers; nothing in polytask imports them."""
