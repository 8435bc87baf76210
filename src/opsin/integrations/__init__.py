"""Other people's conventions, spoken by opsin. Nothing here is imported unasked."""
