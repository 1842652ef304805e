"""Writing into stores: elements are built aside, and come into view by one transaction."""
