KINDS = ("entity", "number", "negation", "opposite", "unit", "subset", "superset", "property")
