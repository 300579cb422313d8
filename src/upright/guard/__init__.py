"""The wing of the guard: which rights a page has, and answers that respect them."""
