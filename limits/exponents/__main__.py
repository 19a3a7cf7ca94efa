from limits.exponents.tables import main

main()
