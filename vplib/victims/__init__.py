"""Who is attacked: endpoints, federations, recognizers."""
