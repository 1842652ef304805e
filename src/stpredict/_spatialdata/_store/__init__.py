"""Writing into stores: results are built in a scratch folder, and become visible in one transaction."""
