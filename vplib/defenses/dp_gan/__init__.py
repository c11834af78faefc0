"""Private generators, each with its noise where its paper puts it."""
