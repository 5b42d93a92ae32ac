"""One module a study: `section`, which says in words, figures and tables what the study found."""
