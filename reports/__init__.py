"""Tables and figures shared by reports."""
