"""From many updates to one model: rules, staging and the weighted fold."""
